# The keeper of one temporary folder. $1: the folder; stdin: a pipe that its owner holds.
# However the owner ends, also by SIGKILL, the pipe then ends: what runs from the folder is stopped, the folder removed.
dir=$1
trap '' INT TERM HUP
while read -r word; do
    [ "$word" = keep ] && exit 0
done

# Is process $1 alive and started from this folder? (A zombie has no command line; a reused number another one.)
ours() {
    if [ -d /proc/self ]; then
        tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline"
    else
        ps -p "$1" -o args=
    fi | grep -qF -- "$dir"
}

# signal NAME FILE...: to the process whose number is the first line of each file
signal() {
    name=$1
    shift
    for file in "$@"; do
        pid=$(head -n 1 "$file" 2>/dev/null) && [ -n "$pid" ] && ours "$pid" && kill -s "$name" "$pid"
    done
}

running() {
    for file in "$dir"/*.pid "$dir"/*/postmaster.pid; do
        pid=$(head -n 1 "$file" 2>/dev/null) && [ -n "$pid" ] && ours "$pid" && return 0
    done
    return 1
}

# A postmaster's SIGQUIT is an immediate shutdown; it kills backends that do not follow within 5 s, so wait longer.
signal TERM "$dir"/*.pid
signal QUIT "$dir"/*/postmaster.pid
signal CONT "$dir"/*.pid "$dir"/*/postmaster.pid
tries=0
while running && [ $tries -lt 100 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
signal KILL "$dir"/*.pid "$dir"/*/postmaster.pid

# A postmaster that was killed leaves its lock file, whose seventh line names a System V shared memory segment.
for file in "$dir"/*/postmaster.pid; do
    segment=$(sed -n '7s/.* //p' "$file" 2>/dev/null)
    [ -n "$segment" ] && ipcrm -m "$segment"
done

# Orphaned backends may still be writing for a moment.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf -- "$dir" && exit 0
    sleep 0.2
done
exit 1
