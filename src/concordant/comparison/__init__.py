"""Running a method against its baseline and controls, and judging what came out."""
