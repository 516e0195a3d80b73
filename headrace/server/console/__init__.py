"""The console: one page in the browser, and the data behind it."""
