FROM python:3.13-slim AS packages

# Before the code, so that a change of the code alone installs nothing again.
COPY requirements.txt .
COPY deploy/requirements.txt deploy/
# deploy/requirements.txt: with the packages for Redis and databases.
ARG REQUIREMENTS=requirements.txt
RUN pip install --no-cache-dir --no-compile --target=/packages -r $REQUIREMENTS
# zstandard is a quarter of it all, and what could use it does without. The last line writes the
# bytecode of what the server imports, and of nothing else.
RUN rm -r /packages/zstandard* \
 && find /packages -name tests -prune -exec rm -r {} + \
 && PYTHONPATH=/packages python -c "import aiohttp.web, langgraph.checkpoint.memory, \
langgraph.prebuilt, langchain_openai, openai.resources.chat.completions"

FROM python:3.13-slim

WORKDIR /app
RUN rm -rf /usr/local/lib/python3*/site-packages/pip*
COPY --from=packages /packages /packages
# .dockerignore says what is left out.
COPY . .

# The files stay root's: the server cannot change its own code. A number can be checked not to be
# root's before the image is opened, as Kubernetes does for runAsNonRoot.
USER 10001:10001

ENV HOST=0.0.0.0 PORT=8000 PYTHONPATH=/packages
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
