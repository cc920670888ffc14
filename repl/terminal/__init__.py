"""The terminal: line editor, live output, views of results, Markdown, the inspector, exports."""
