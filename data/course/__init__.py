"""The course: the assignment, its questions, and the commands that belong to it."""
