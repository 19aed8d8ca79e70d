"""The methods that a comparison holds UPL against."""
