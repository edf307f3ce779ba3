"""The course: drawings, steps to my_model.py, exercises and their checker, planted bugs, tools for the notebooks."""
