// Command bench measures Writ's hot paths against a floor: a process that does
// the unavoidable part of the same work and nothing else, in the same run on the
// same machine. What it prints is CPU time of the server process per operation
// (user + system, /proc/PID/stat), which a busy neighbour does not change much,
// and the ratio of ours to the floor. It never fails a build by itself.
//
//	go run ./bench [-only authz,authz-reload,authz-data,ratelimit,ratelimit-core,plans,issuance,idle,registration,agent,revocation,policies,configuration] [-bin ./bin]
//	go run ./bench -only soak -for 10m
//
// It starts the real binaries and, where a row needs them, a real redis-server and
// real Envoys.
// docs/performance.md says what the rows mean.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the same for all rows.
type options struct {
	bin    string
	dir    string // for sockets and files of this run
	rounds int
	// each is how long one measurement of one side takes, after as much again of
	// a third for warming up.
	each     time.Duration
	services int
	proxies  int
	// Of the rows about identities: node agents that are simulated, registrations of
	// the authority, workloads of the real node agent and how often they are recognized
	// in a second, and how often the time of a registration is taken.
	agents, registrations   int
	workloads, attestations int
	registered, envoys      int
	// policies are those of one workload in the row of that name.
	policies int
	// dataMiB is the size of the document of the row authz-data.
	dataMiB int
	// callers are those of the table of the plans row.
	callers int
	// incumbent is a binary of envoyproxy/ratelimit, empty for none.
	incumbent string
	// Of the soak: how long it takes, how long on average nothing befalls Redis between
	// two faults, how long replicas wait for Redis, requests in a second, and where
	// chance begins.
	length, calm, patience time.Duration
	rate                   int
	seed                   uint64
	log                    io.Writer
}

// benchmark prints its rows.
type benchmark struct {
	name string
	run  func(context.Context, options) ([]row, error)
	// asked: it is run only if it is asked for by its name.
	asked bool
}

func benchmarks() []benchmark {
	return []benchmark{
		{name: "authz", run: authz},
		{name: "authz-reload", run: authzReload},
		{name: "authz-data", run: authzData},
		{name: "ratelimit", run: ratelimit},
		{name: "ratelimit-core", run: ratelimitCore},
		{name: "plans", run: plans},
		{name: "issuance", run: issuance},
		{name: "idle", run: idle},
		{name: "registration", run: registration},
		{name: "agent", run: agent},
		{name: "revocation", run: revocation},
		{name: "policies", run: policies},
		{name: "configuration", run: configuration},
		{name: "soak", run: soak, asked: true},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	o := options{log: os.Stderr}
	only := fs.String("only", "", "comma separated `rows`: authz, authz-reload, authz-data, ratelimit, ratelimit-core, plans, issuance, idle, registration, agent, revocation, policies, configuration, and soak if it is asked for")
	be := fs.String("be", "", "be a floor process, grpc or sign, or a workload (used by bench itself)")
	listen := fs.String("listen", "", "the floor's `address`, or that of the workload's node agent")
	fs.StringVar(&o.bin, "bin", "bin", "`folder` with the binaries")
	fs.IntVar(&o.rounds, "rounds", 3, "how often ours and the floor are measured in turn; the median counts")
	fs.DurationVar(&o.each, "each", 3*time.Second, "length of one measurement")
	fs.IntVar(&o.services, "services", 1000, "services of the configuration row")
	fs.IntVar(&o.proxies, "proxies", 200, "proxies of the configuration row")
	fs.IntVar(&o.agents, "agents", 5000, "simulated node agents of the idle row")
	fs.IntVar(&o.registrations, "registrations", 50_000, "registrations of the rows idle and agent")
	fs.IntVar(&o.workloads, "workloads", 50, "processes with an identity of the agent row")
	fs.IntVar(&o.attestations, "attestations", 100, "attestations in a second of the agent row")
	fs.IntVar(&o.registered, "registered", 200, "registrations that the registration row waits for")
	fs.IntVar(&o.policies, "policies", 10_000, "AuthorizationPolicies of one workload that the policies row compares with 10")
	fs.IntVar(&o.dataMiB, "data", 500, "MiB of the document that the authz-data row loads")
	fs.IntVar(&o.callers, "callers", 1_000_000, "callers whose plans the plans row loads")
	fs.StringVar(&o.incumbent, "incumbent", "", "`binary` of envoyproxy/ratelimit, which the ratelimit row measures in turn with the exact mode")
	fs.DurationVar(&o.length, "for", 10*time.Minute, "length of the soak")
	fs.DurationVar(&o.calm, "calm", 15*time.Second, "how long nothing befalls Redis between two faults of the soak, on average")
	fs.DurationVar(&o.patience, "patience", 20*time.Millisecond, "how long replicas of the soak wait for Redis (redis.timeout)")
	fs.IntVar(&o.rate, "rate", 5000, "requests in a second of the soak")
	fs.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "where chance begins in the soak") //nolint:gosec // positive
	fs.IntVar(&o.envoys, "envoys", 20, "Envoys that the registration row waits for")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *be != "" {
		return runPart(ctx, *be, *listen, o.each)
	}
	if o.rate <= 0 || o.calm <= 0 || o.patience <= 0 {
		return errors.New("want -rate, -calm and -patience above 0")
	}
	wanted, err := selectRows(*only)
	if err != nil {
		return err
	}
	if o.dir, err = os.MkdirTemp("", "writ-bench"); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(o.dir) }()
	return measure(ctx, o, wanted)
}

func selectRows(only string) ([]benchmark, error) {
	if only == "" {
		return slices.DeleteFunc(benchmarks(), func(b benchmark) bool { return b.asked }), nil
	}
	var out []benchmark
	for name := range strings.SplitSeq(only, ",") {
		found := false
		for _, b := range benchmarks() {
			if b.name == name {
				out, found = append(out, b), true
			}
		}
		if !found {
			return nil, fmt.Errorf("unknown row %q", name)
		}
	}
	return out, nil
}

func measure(ctx context.Context, o options, wanted []benchmark) error {
	var problems []error
	printHead(os.Stdout)
	for _, b := range wanted {
		o := o
		o.dir = filepath.Join(o.dir, b.name)
		if err := os.Mkdir(o.dir, 0o700); err != nil {
			return err
		}
		rows, err := b.run(ctx, o)
		for _, r := range rows {
			r.print(os.Stdout)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", b.name, err))
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return errors.Join(problems...)
}
