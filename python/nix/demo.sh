# A daemon of its own, in a folder that ends with it, and commands in a machine of $runner.
folder=$(mktemp -d)
export MICROVM_ORCHESTRATOR_SOCKET=$folder/socket
: >"$folder/config.toml"
microvm-orchestrator serve --config "$folder/config.toml" --state-dir "$folder/state" \
    --socket "$folder/socket" 2>"$folder/log" &
daemon=$!

finish() {
    status=$?
    # Machines outlive their daemon.
    microvm-orchestrator machine kill demo >/dev/null 2>&1 || true
    kill "$daemon" || true
    wait "$daemon" || true
    [[ $status = 0 ]] || tail "$folder/log" >&2
    rm -rf "$folder"
    exit "$status"
}
trap finish EXIT

until microvm-orchestrator whoami >/dev/null 2>&1; do
    kill -0 "$daemon"
    sleep 0.1
done

show() {
    printf '\n$ microvm-orchestrator %s\n' "$*"
    microvm-orchestrator "$@"
}
show image add guest "$runner"
show machine define demo --image guest
show machine start demo
show machine exec demo -n -- uname -a
show machine exec demo -n -- cat /etc/os-release
show machine usage demo
show machine stop demo
