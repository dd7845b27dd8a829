"""The routes, a file a family: `routes(model)` makes its router."""
