// Command bench measures Writ's hot paths against a floor: a process that does
// the unavoidable part of the same work and nothing else, in the same run on the
// same machine. What it prints is CPU time of the server process per operation
// (user + system, /proc/PID/stat), which a busy neighbour does not change much,
// and the ratio of ours to the floor. It never fails a build by itself.
//
//	go run ./bench [-only authz,ratelimit,issuance,configuration] [-bin ./bin]
//
// It starts the real binaries and, for the ratelimit row, a real redis-server.
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
	log      io.Writer
}

// benchmark prints its rows.
type benchmark struct {
	name string
	run  func(context.Context, options) ([]row, error)
}

func benchmarks() []benchmark {
	return []benchmark{{"authz", authz}, {"ratelimit", ratelimit}, {"issuance", issuance}, {"configuration", configuration}}
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
	only := fs.String("only", "", "comma separated `rows`: authz, ratelimit, issuance, configuration")
	floor := fs.String("floor", "", "be a floor process: grpc or sign (used by bench itself)")
	listen := fs.String("listen", "", "the floor's `address`")
	fs.StringVar(&o.bin, "bin", "bin", "`folder` with the binaries")
	fs.IntVar(&o.rounds, "rounds", 3, "how often ours and the floor are measured in turn; the median counts")
	fs.DurationVar(&o.each, "each", 3*time.Second, "length of one measurement")
	fs.IntVar(&o.services, "services", 1000, "services of the configuration row")
	fs.IntVar(&o.proxies, "proxies", 200, "proxies of the configuration row")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *floor != "" {
		return runFloor(ctx, *floor, *listen, o.each)
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
		return benchmarks(), nil
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
