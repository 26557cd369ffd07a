# CPU image with the embedded model: no PyTorch, no compiler, one user without rights.
#   docker build -t moss-audio . && docker run --rm -p 127.0.0.1:8000:8000 -e MOSS_AUDIO_API_KEY moss-audio
FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY moss_audio moss_audio
RUN python -m venv /opt/moss-audio && /opt/moss-audio/bin/pip install --no-cache-dir '.[server]' \
    && find /opt/moss-audio -name __pycache__ -prune -exec rm -rf {} + \
    && /opt/moss-audio/bin/pip uninstall --yes pip

FROM python:3.13-slim
RUN useradd --uid 10001 --no-create-home moss && install -d -o moss /var/lib/moss-audio
COPY --from=build /opt/moss-audio /opt/moss-audio
ENV PATH=/opt/moss-audio/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    MOSS_AUDIO_HOST=0.0.0.0 MOSS_AUDIO_STORE=/var/lib/moss-audio/batches.db
USER moss
WORKDIR /var/lib/moss-audio
VOLUME /var/lib/moss-audio
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["moss-audio", "serve"]
