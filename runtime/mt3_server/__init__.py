"""The service: transcription over HTTP and WebSocket, `mt3 serve`."""
