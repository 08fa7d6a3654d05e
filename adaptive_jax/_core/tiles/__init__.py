"""The tile lift: rules in a row on one array, tile by tile, in one kernel that calls them unchanged."""
