"""Rooms of one field each; an extra installs what a field needs. They import everything above and never each other."""
