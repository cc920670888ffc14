"""What is typed and drawn: the views of values, live output, Markdown, the inspector, exports."""
