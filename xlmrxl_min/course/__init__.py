"""The course: exercises and their checker, planted bugs, and the tools that link and render the notebooks."""
