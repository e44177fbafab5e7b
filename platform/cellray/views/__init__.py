"""Views: changes of a cell, and what of it is to be predicted. The table is `VIEWS`."""
