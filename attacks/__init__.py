"""Attacks that servers of models are known for, each against a running `vcls serve`, which must go on answering."""
