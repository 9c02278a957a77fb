"""Where photographs come from: a short module a dataset, each a function that lists its photographs."""
