"""Trains the demo's three tiny CLIPs on letters and digits drawn from fonts."""
