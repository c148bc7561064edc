"""What one sees of finished runs: RUN/report.html, one file with curves, images and its origin."""
