# Debian's Redis under the names that docker-compose.yml calls Valkey's programs by. Like Valkey's image, and unlike
# Debian's own setting, it answers other containers: nothing but the compose network leads to it.
ARG BASE
FROM ${BASE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends redis-server \
    && rm -rf /var/lib/apt/lists/* \
    && printf '#!/bin/sh\nexec redis-server "$@" --protected-mode no\n' > /usr/local/bin/valkey-server \
    && chmod 755 /usr/local/bin/valkey-server \
    && ln -s /usr/bin/redis-cli /usr/local/bin/valkey-cli \
    && install --directory --owner=redis --group=redis /data
WORKDIR /data
USER redis
EXPOSE 6379
