"""The learner: encoder, objective and views as one module, and its optimiser. torch alone."""
