# The image of every role: `serve` (the default), `dashboard`, `migrate`, …; docs/how-to/operate.md explains how to run it.
# It has no torch: the measuring part of the SDK belongs to the training environment. `make lock` renews the lock files.

FROM python:3.13-slim AS build
# Package index of pip, for builds behind a mirror: docker build --build-arg PIP_INDEX_URL=…
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ENV PIP_NO_CACHE_DIR=1 PIP_PROGRESS_BAR=off PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python3 -m venv --without-pip /opt/spikewatch && python3 -m venv tools
COPY deploy/build.lock deploy/requirements.lock ./
RUN tools/bin/pip install --require-hashes -r build.lock \
 && tools/bin/pip --python /opt/spikewatch/bin/python install --no-compile --require-hashes -r requirements.lock
# Removes from the libraries what a server never loads: test suites, C headers and sources, source maps and development builds
# of JavaScript, the Jupyter plug-in and example data of plotly, and Arrow's clients of services and duplicates.
RUN cd /opt/spikewatch/lib/python3*/site-packages \
 && find . -type d \( -name tests -o -name include -o -name labextension -o -name nbextension \) -prune -exec rm -rf {} + \
 && find . -type f \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.c' -o -name '*.cpp' -o -name '*.h' \
      -o -name '*.hpp' -o -name '*.a' -o -name '*.map' -o -name '*.dev.js' -o -name '*.pyi' \) -delete \
 && rm -rf plotly/package_data/datasets plotly/package_data/widgetbundle.js watchfiles watchfiles-* pyarrow/src sqlalchemy/testing \
 && rm -f pyarrow/*flight* pyarrow/*s3* pyarrow/*gcsfs* pyarrow/*azurefs* pyarrow/*hdfs* pyarrow/*orc* \
      pyarrow/libarrow_python.so pyarrow/libarrow_python.so.*.*.* dash/dash_table/demo.js
COPY pyproject.toml README.md ./
COPY client_sdk client_sdk
COPY server server
COPY dashboard dashboard
COPY migrations migrations
COPY deploy/warm_up.py ./
RUN tools/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir wheels . ./client_sdk \
 && tools/bin/pip --python /opt/spikewatch/bin/python install --no-compile --no-deps --no-index wheels/*.whl \
 && /opt/spikewatch/bin/python warm_up.py

FROM python:3.13-slim
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/spikewatch spikewatch \
 && install -d -o spikewatch -g spikewatch -m 0700 /var/lib/spikewatch /run/spikewatch
COPY --from=build /opt/spikewatch /opt/spikewatch
COPY deploy/healthcheck.py deploy/make_secrets.py /opt/spikewatch/
# MALLOC_…: all threads share one arena of glibc's allocator, and large buffers return to the system when they are freed;
# benchmarks/results/allocator.md has the measurement.
ENV PATH=/opt/spikewatch/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MALLOC_ARENA_MAX=1 MALLOC_TRIM_THRESHOLD_=131072 \
    SPIKEWATCH_HOME=/var/lib/spikewatch SPIKEWATCH_HOST=0.0.0.0
USER spikewatch
WORKDIR /var/lib/spikewatch
EXPOSE 8787
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python3", "-IS", "/opt/spikewatch/healthcheck.py"]
ENTRYPOINT ["spikewatch"]
CMD ["serve"]
