package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// How a workload lets itself be recognized.
const (
	anew  = "on a new connection"
	again = "on an open connection"
)

// task is what a workload's process is told to do, on its standard input, and
// what it answers when it has done it.
type task struct {
	Kind   string        `json:"kind,omitempty"`
	Socket string        `json:"socket,omitempty"` // unix:///path
	Every  time.Duration `json:"every,omitempty"`
	For    time.Duration `json:"for,omitempty"`

	Done  int    `json:"done,omitempty"`
	Error string `json:"error,omitempty"`
}

// runWorkload is the whole life of a process that is a workload: it holds its
// certificate by the Workload API, says so, and does what it is told.
func runWorkload(ctx context.Context, socket string) error {
	conn, err := dialWorkloadAPI(socket)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	held, err := fetch(ctx, conn)
	if err != nil {
		return err
	}
	go func() { // what is renewed is taken
		for err := error(nil); err == nil; {
			_, err = held.Recv()
		}
	}()
	open := map[string]*grpc.ClientConn{socket: conn}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(task{}); err != nil {
		return err
	}
	in := json.NewDecoder(os.Stdin)
	for {
		var t task
		if err := in.Decode(&t); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if open[t.Socket] == nil {
			c, err := dialWorkloadAPI(t.Socket)
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			open[t.Socket] = c
		}
		if err := t.do(ctx, open[t.Socket]); err != nil {
			t.Error = err.Error()
		}
		if err := out.Encode(t); err != nil {
			return err
		}
	}
}

func dialWorkloadAPI(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// fetch opens a stream and waits for the first certificate.
func fetch(ctx context.Context, conn *grpc.ClientConn) (workload.SpiffeWorkloadAPI_FetchX509SVIDClient, error) {
	ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	s, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		return nil, err
	}
	resp, err := s.Recv()
	if err == nil && len(resp.GetSvids()) != 1 {
		err = fmt.Errorf("%d certificates, want one", len(resp.GetSvids()))
	}
	return s, err
}

func (t *task) do(ctx context.Context, open *grpc.ClientConn) error {
	end := time.NewTimer(t.For)
	defer end.Stop()
	// Not all processes at the same moment.
	if err := pause(ctx, time.Duration(rand.Float64()*float64(min(t.Every, t.For)))); err != nil {
		return err
	}
	tick := time.NewTicker(t.Every)
	defer tick.Stop()
	for {
		if err := t.once(ctx, open); err != nil {
			return err
		}
		t.Done++
		select {
		case <-tick.C:
		case <-end.C:
			return nil
		}
	}
}

func (t *task) once(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if t.Kind == anew {
		var err error
		if conn, err = dialWorkloadAPI(t.Socket); err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
	}
	_, err := fetch(ctx, conn)
	return err
}

// workloads are processes, each of which is another workload to the node agent.
type workloads struct{ all []*workloadProcess }

type workloadProcess struct {
	cmd *exec.Cmd
	in  *json.Encoder
	out *json.Decoder
	end io.Closer
}

// launchWorkloads starts the programs, which are this one, and waits until each has
// a certificate.
func launchWorkloads(ctx context.Context, programs []string, socket string) (*workloads, error) {
	w := new(workloads)
	for _, program := range programs {
		cmd := exec.CommandContext(ctx, program, "-be", "workload", "-listen", socket) //nolint:gosec // this program
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, errors.Join(err, w.stop())
		}
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			return nil, errors.Join(err, w.stop())
		}
		w.all = append(w.all, &workloadProcess{cmd: cmd, in: json.NewEncoder(in), out: json.NewDecoder(bufio.NewReader(out)), end: in})
	}
	for i, p := range w.all {
		if err := p.out.Decode(new(task)); err != nil {
			return nil, errors.Join(fmt.Errorf("%s gets no certificate: %w", programs[i], err), w.stop())
		}
	}
	return w, nil
}

// call has each workload do the task; it returns how often it was done in all.
func (w *workloads) call(t task) (done int, err error) {
	for _, p := range w.all {
		if err := p.in.Encode(t); err != nil {
			return 0, err
		}
	}
	for _, p := range w.all {
		var answer task
		if err := p.out.Decode(&answer); err != nil {
			return 0, err
		}
		if answer.Error != "" {
			return 0, errors.New(answer.Error)
		}
		done += answer.Done
	}
	if done == 0 {
		return 0, errors.New("nothing was done")
	}
	return done, nil
}

// stop ends the processes.
func (w *workloads) stop() error {
	var errs []error
	for _, p := range w.all {
		_ = p.end.Close()
	}
	for _, p := range w.all {
		if err := p.cmd.Wait(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
