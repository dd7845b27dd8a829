# A server with its model in a volume. Build it in the project's folder:
#   docker build -t vllm-cls .                                  for CPUs
#   docker build -t vllm-cls:cuda --build-arg DEVICE=cu130 .    for NVIDIA GPUs; DEVICE is a folder of download.pytorch.org/whl
#   docker image ls vllm-cls                                    its size
# Run it:
#   docker run --rm -p 8000:8000 -v ./my-classifier:/model:ro vllm-cls
#   docker run --rm -p 8000:8000 -v ./my-classifier:/model:ro --gpus all vllm-cls:cuda
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
ARG DEVICE=cpu
ARG EXTRAS=""
# The C compiler builds the attention of CPUs when the first model loads.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 vcls
# torch goes first, in a layer of its own: it is most of the image, and changes rarely.
COPY constraints.txt /tmp/
RUN pip install --no-cache-dir -c /tmp/constraints.txt --index-url https://download.pytorch.org/whl/${DEVICE} torch
COPY --from=build /wheels /tmp/wheels
RUN pip install --no-cache-dir -c /tmp/constraints.txt "$(ls /tmp/wheels/*.whl)${EXTRAS}"
USER vcls
WORKDIR /home/vcls
ENV PYTHONDONTWRITEBYTECODE=1 VCLS_MODEL=/model
EXPOSE 8000
# A model may load for minutes, in which /health answers 503.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# `exec`: SIGTERM reaches the server, which answers what is in flight.
ENTRYPOINT ["/bin/sh", "-c", "exec vcls serve \"$VCLS_MODEL\" --host 0.0.0.0 --port 8000 \"$@\"", "vcls"]
