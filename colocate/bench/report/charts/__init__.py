"""Charts of a report as inline SVG. `style` is the one place for colours, dashes and sizes; `draw` picks by kind."""
