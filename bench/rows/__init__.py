"""The rows, a module a family: FAMILY (its name in plots), PLACE (in the tables) and ROWS."""
