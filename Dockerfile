# An image for pods on GKE (scripts/tpu/README.md), or with --build-arg EXTRA=cuda for GPUs:
#   docker build -t REGION-docker.pkg.dev/PROJECT/REPOSITORY/bert_jax . && docker push ...
FROM python:3.12-slim
WORKDIR /bert_jax
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY bert_jax bert_jax
COPY experiments experiments
COPY scripts scripts
ARG EXTRA=tpu
RUN pip install --no-cache-dir --constraint constraints.txt --editable ".[${EXTRA}]"
ENTRYPOINT ["python", "-m", "bert_jax"]
