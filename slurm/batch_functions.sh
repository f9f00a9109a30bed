# The functions and traps of every batch script of bigbatch. The script sources this file from the job's copy of the code.
#
# Whatever ends the script (a failing line of setup, a signal, the program), `conclude` records why and decides whether the
# job starts again. It must not depend on anything that setup may change: the directory, the shell's options, traps. If
# Python itself does not run on this node, the shell alone records that and excludes the node.
#
# Set by the script: python (a command), retries, partition.

# An array's task is requeued as ARRAY_TASK: its plain id can stand for the whole array.
job=$SLURM_JOB_ID
records=..
if [ -n "$SLURM_ARRAY_JOB_ID" ]; then
  job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  records=../records/$SLURM_ARRAY_TASK_ID
fi
code_folder=$PWD
signal= # name of the signal that the script received
step=   # process id of srun

# Runs a command of SLURM and prints its output. Retries for up to half an hour if the controller does not answer: a job whose
# requeue failed would be lost.
retried() {
  local output until=$((SECONDS + 1800))
  until output=$("$@" 2>&1); do
    case $output in
      *"Unable to contact"* | *"connect failure"* | *"onnection refused"* | *"timed out"* | *"Zero Bytes"*) sleep 3 ;;
      *) until=0 ;;
    esac
    if [ "$SECONDS" -ge "$until" ]; then
      echo "$output"
      return 1
    fi
  done
  [ -z "$output" ] || echo "$output"
}

# Requeues this job, excludes the nodes in $1 (comma-separated, may be empty), and ends the script.
requeue_without() {
  retried scontrol requeue "$job" >&2 || exit 1
  [ -z "$1" ] || retried scontrol update JobId="$job" ExcNodeList="$1" >&2
  exit 0
}

# Decides whether the job starts again if Python, and so `slurm.verdict`, does not run on this node.
decide_without_python() {
  local node=${SLURMD_NODENAME:-$(hostname)} again=true excluded
  [ -f ../jobs.json ] || exit 1 # this node does not see the run directory either
  [ "$(tail -n "$retries" "$records/events.jsonl" | grep -c "cannot run Python")" -lt "$retries" ] || again=false
  case " $info " in *" JobState=COMPLETING "*) again=false ;; esac # cancelled, or requeued by SLURM already
  printf '{"event": "verdict", "time": %s, "job": "%s", "restart": %s, "requeue": %s, ' \
    "$(date +%s)" "$job" "${SLURM_RESTART_COUNT:-0}" "$again" >> "$records/events.jsonl"
  printf '"reason": "node %s cannot run Python (exit code %s)", "gained": false, "exclude": ["%s"]}\n' \
    "$node" "$code" "$node" >> "$records/events.jsonl"
  [ "$again" = true ] || exit 1
  excluded=$(sed -n 's/.* ExcNodeList=\([^ ]*\) .*/\1/p' <<< "$info " | sed 's/(null)//')
  requeue_without "$node${excluded:+,$excluded}"
}

# Runs whenever the script ends.
conclude() {
  code=$?
  local info verdict nodes
  trap - EXIT
  trap "" TERM HUP INT USR1 USR2
  set +eu
  cd "$code_folder" || exit 1
  info=$(retried scontrol show job "$job" --oneliner)
  nodes=$(sinfo --noheader --Node --partition="$partition" --format="%N|%G" 2> /dev/null)
  verdict=$(PYTHONSAFEPATH='' eval "$python" -m slurm.verdict '.. "$job" "${SLURM_RESTART_COUNT:-0}" "$code" "$signal" "$info"' \
    <<< "$nodes" | tail -n 1)
  case $verdict in
    requeue:*) requeue_without "${verdict#requeue:}" ;;
    end:*) exit "${verdict#end:}" ;;
    *) decide_without_python ;;
  esac
}

# Undoes what setup may have changed. Ends the script if a signal came before there was an srun to forward it to.
after_setup() {
  set +eu
  cd "$code_folder" || exit 1
  trap conclude EXIT
  [ -z "$signal" ] || exit 143
  export SUBMITIT_EXECUTOR=slurm
}

# Copies srun's messages to the log and to a file: they name the nodes on which a rank could not start.
keep_messages() {
  trap "" TERM HUP INT USR1 USR2 # SLURM sends signals to all processes of the script; srun would end with its reader
  tee "../$job.srun" >&2
}

# Waits for the srun with the process id $1 and ends the script with its exit code.
end_with() {
  step=$1
  wait "$step"
  code=$?
  while kill -0 "$step" 2> /dev/null; do # a signal interrupts `wait`
    wait "$step"
    code=$?
  done
  exit "$code"
}

trap conclude EXIT
# On TERM, srun would kill the step at once. It forwards USR2 to the ranks, which save and stop.
trap 'signal=TERM; [ -z "$step" ] || kill -USR2 "$step"' TERM HUP INT
trap 'signal=USR2; [ -z "$step" ] || kill -USR2 "$step"' USR2
trap : USR1
export PYTHONSAFEPATH= # empty: the working directory, and so the copy of the code, comes before installed packages
