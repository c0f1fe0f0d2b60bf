# An application image with lockrun in it. Replace the base, the user and the command by your own.
#
#   docker build -f packaging/docker/app.Dockerfile -t app packaging/docker
ARG BASE=python:3-slim
FROM lockrun AS lockrun

FROM ${BASE}
COPY --from=lockrun /lockrun /usr/local/bin/lockrun

# Not root. A new named volume takes the owner of the folder that it is mounted on, so every replica can write the database.
RUN mkdir -p /var/lib/lockrun && chown 10001:10001 /var/lib/lockrun
USER 10001:10001

# For the health check, inside the container only: `docker ps` shows a replica that waits as healthy too.
ENV LOCKRUN_HTTP=127.0.0.1:8080
HEALTHCHECK CMD ["lockrun", "health"]

# Exec form, so that lockrun is PID 1 and gets the stop signal. When PID 1 ends, the kernel ends all that is left in the container.
CMD ["lockrun", "--db", "/var/lib/lockrun/app.db", "--name", "beat", "--kill-after", "15s", "--", "python3", "-m", "app"]
