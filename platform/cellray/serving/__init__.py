"""A registered model behind HTTP, on Ray Serve, and how far what it gets has drifted."""
