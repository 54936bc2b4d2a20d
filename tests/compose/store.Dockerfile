# moto's S3 server, on the port the object store of docker-compose.yml listens on.
ARG BASE
FROM ${BASE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*
COPY site/ /opt/site/
ENV PYTHONPATH=/opt/site PYTHONDONTWRITEBYTECODE=1
USER nobody
EXPOSE 9000
CMD ["python3", "-m", "moto.server", "--host", "0.0.0.0", "--port", "9000"]
