"""Pages for people: one HTML file that needs nothing else, with drawings in the color of the page."""
