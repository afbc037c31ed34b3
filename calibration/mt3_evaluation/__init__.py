"""Scores transcriptions against labels: metrics, reports, pictures, test sets, scoreboards."""
