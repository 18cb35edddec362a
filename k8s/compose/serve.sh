# The container `palate`: a Ray of one node, and the applications of serve.yaml on it. Ends when Ray does, so that the
# container is started again as a whole.
set -eu
ray start --head --block --metrics-export-port=8080 --num-cpus="${PALATE_RAY_CPUS:-$(($(nproc) * 2))}" --dashboard-host=127.0.0.1 &
ray=$!
trap 'kill -TERM $ray; wait $ray' TERM INT
until serve deploy --address http://127.0.0.1:8265 /etc/palate/serve.yaml; do
    kill -0 $ray || exit 1
    sleep 2
done
wait $ray
