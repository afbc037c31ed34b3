"""Jobs: transcriptions that outlive the connection they came over."""
