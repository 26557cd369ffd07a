"""The model behind HTTP: OpenAI's routes, typed tasks, live audio and batches. Needs the extra `server`."""
