"""scMoGNN: prediction, matching and joint embedding on graphs of cells and features."""
