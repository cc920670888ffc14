"""Values that every part uses: errors, events, settings, jobs, safe text. It knows no model and no terminal."""
