#!/bin/bash
# A real Slurm on this one machine, for tests: as root, with Debian's packages slurm-wlm and munge.
#
#     scripts/slurm_single_node.sh start FOLDER      then: export SLURM_CONF=FOLDER/slurm.conf
#     scripts/slurm_single_node.sh stop FOLDER
#
# Partitions over one node: `normal` (default), and `low` whose jobs are requeued when `high` needs the node; those of
# `cancelled` and `killed` are cancelled instead, with a minute of grace and without; and `two` over that node and a second
# one of the same machine, called localhost. Accounting, which a cluster may lack, only with SLURM_TEST_ACCOUNTING=1, from
# the packages slurmdbd and mariadb-server: the user may then charge jobs to the account `lab`, and to no other.
set -euo pipefail
ACTION=${1:?start or stop} FOLDER=$(realpath -m "${2:?a folder for configuration, state and logs}")
CPUS=${SLURM_TEST_CPUS:-2} ACCOUNTING=${SLURM_TEST_ACCOUNTING:-}

running() { [ -s "$FOLDER/$1.pid" ] && kill -0 "$(cat "$FOLDER/$1.pid")" 2>/dev/null; }

# In the foreground form, each in a session of its own: started as daemons the first launches time out.
daemon() {  # NAME COMMAND...
  local name=$1; shift
  running "$name" || { setsid "$@" >"$FOLDER/$name.log" 2>&1 </dev/null & echo $! >"$FOLDER/$name.pid"; }
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

# Where a job's end is written down: nowhere, or by slurmdbd in a database of our own on a free port.
accounts() {
  [ -n "$ACCOUNTING" ] || { echo "AccountingStorageType=accounting_storage/none"; return; }
  local port database; port=$(free_port) database=$(free_port)
  mariadb-install-db --no-defaults --user=root --auth-root-authentication-method=normal --datadir="$FOLDER/database" \
    >"$FOLDER/database.log" 2>&1
  echo "$database" >"$FOLDER/database.port"
  (umask 077; cat >"$FOLDER/slurmdbd.conf") <<CONF
AuthType=auth/munge
AuthInfo=socket=$FOLDER/munge/socket
DbdHost=$(hostname -s)
DbdAddr=127.0.0.1
DbdPort=$port
SlurmUser=root
PidFile=$FOLDER/slurmdbd.own.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$database
StorageUser=root
CONF
  echo "AccountingStorageType=accounting_storage/slurmdbd"
  echo "AccountingStorageHost=127.0.0.1"
  echo "AccountingStoragePort=$port"
  echo "AccountingStoragePass=$FOLDER/munge/socket"
  echo "AccountingStorageEnforce=associations"
}

# The cluster, the account and who may use it: asked again until slurmdbd answers.
account() {
  for _ in $(seq 100); do
    sacctmgr --immediate add cluster single >/dev/null 2>&1 || true
    sacctmgr --immediate add account lab cluster=single >/dev/null 2>&1 || true
    sacctmgr --immediate add user "$(id -un)" account=lab cluster=single >/dev/null 2>&1 || true
    [ -z "$(sacctmgr --noheader show association account=lab user="$(id -un)" format=account 2>/dev/null)" ] || return 0
    sleep 0.2
  done
  echo "slurmdbd did not come up; see $FOLDER/slurmdbd.log" >&2
  exit 1
}

configure() {
  local host; host=$(hostname -s)
  mkdir -p "$FOLDER"/{state,munge} "$FOLDER"/spool.{"$host",localhost}
  [ -s "$FOLDER/munge/key" ] || (umask 077; head -c 1024 /dev/urandom >"$FOLDER/munge/key")
  chmod 700 "$FOLDER/munge"; chmod 755 "$FOLDER"
  cat >"$FOLDER/slurm.conf" <<CONF
ClusterName=single
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$FOLDER/munge/socket
CredType=cred/munge
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmctldPidFile=$FOLDER/slurmctld.own.pid
SlurmdPidFile=$FOLDER/slurmd.%n.own.pid
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=2
$(accounts)
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=1
SlurmdParameters=config_overrides
KillWait=30
MinJobAge=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=$CPUS State=UNKNOWN
NodeName=localhost NodeHostname=$host NodeAddr=127.0.0.1 Port=$(free_port) CPUs=$CPUS State=UNKNOWN
PartitionName=normal Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=5 PreemptMode=OFF
PartitionName=low Nodes=$host MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=cancelled Nodes=$host MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=CANCEL GraceTime=60
PartitionName=killed Nodes=$host MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=CANCEL GraceTime=0
PartitionName=two Nodes=$host,localhost MaxTime=INFINITE State=UP PriorityTier=5 PreemptMode=OFF
PartitionName=high Nodes=$host MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
}

case $ACTION in
  start)
    [ "$(id -u)" = 0 ] || { echo "this needs root" >&2; exit 2; }
    command -v slurmctld slurmd munged >/dev/null || { echo "this needs the packages slurm-wlm and munge" >&2; exit 2; }
    [ -s "$FOLDER/slurm.conf" ] || configure
    export SLURM_CONF=$FOLDER/slurm.conf
    daemon munged munged --foreground --force --key-file="$FOLDER/munge/key" --socket="$FOLDER/munge/socket" \
      --pid-file="$FOLDER/munge/pid" --log-file="$FOLDER/munge/log" --seed-file="$FOLDER/munge/seed"
    for _ in $(seq 100); do [ -S "$FOLDER/munge/socket" ] && break; sleep 0.1; done
    if [ -s "$FOLDER/slurmdbd.conf" ]; then
      daemon mariadbd mariadbd --no-defaults --user=root --datadir="$FOLDER/database" --socket="$FOLDER/database.socket" \
        --bind-address=127.0.0.1 --port="$(cat "$FOLDER/database.port")"
      for _ in $(seq 100); do [ -S "$FOLDER/database.socket" ] && break; sleep 0.1; done
      daemon slurmdbd env SLURM_CONF="$SLURM_CONF" slurmdbd -D
      account
    fi
    daemon slurmctld slurmctld -D -c -f "$SLURM_CONF"
    for node in "$(hostname -s)" localhost; do daemon "slurmd.$node" slurmd -D -f "$SLURM_CONF" -N "$node"; done
    for _ in $(seq 300); do
      [ "$(sinfo -h -o %D%t -p two 2>/dev/null || true)" = 2idle ] && { echo "$SLURM_CONF"; exit 0; }
      sleep 0.2
    done
    echo "Slurm did not come up; see $FOLDER/*.log" >&2
    exit 1 ;;
  stop)
    export SLURM_CONF=$FOLDER/slurm.conf
    scancel --user="$(id -un)" 2>/dev/null || true
    for name in "slurmd.$(hostname -s)" slurmd.localhost slurmctld slurmdbd mariadbd munged; do running "$name" && kill "$(cat "$FOLDER/$name.pid")" || true; done ;;
  *) echo "start or stop" >&2; exit 2 ;;
esac
