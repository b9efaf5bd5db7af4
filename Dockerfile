FROM python:3.13-slim

WORKDIR /app

# Before the code, so that a change of the code alone installs nothing again.
COPY requirements.txt .
COPY deploy/requirements.txt deploy/
# deploy/requirements.txt: with the packages for Redis and databases.
ARG REQUIREMENTS=requirements.txt
RUN pip install --no-cache-dir -r $REQUIREMENTS

# .dockerignore says what is left out.
COPY . .

# The files stay root's: the server cannot change its own code. A number can be checked not to be
# root's before the image is opened, as Kubernetes does for runAsNonRoot.
USER 10001:10001

ENV HOST=0.0.0.0 PORT=8000
EXPOSE 8000

# Unhealthy also while it drains, when /healthz is 503: it takes no new runs then. Not urllib, which
# would ask the http_proxy that Docker hands on to containers.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD ["python", "-c", "\
import http.client, os, sys; \
server = http.client.HTTPConnection('127.0.0.1:' + (os.environ['PORT'] or '8000')); \
server.request('GET', '/healthz'); \
sys.exit(server.getresponse().status != 200)"]

# As a list, without a shell in between that would keep SIGTERM to itself.
CMD ["python", "app.py"]
