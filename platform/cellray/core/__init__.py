"""The ground floor: types, errors, the recipe, seeds, gene vocabularies. NumPy only."""
