package stack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/writ-mesh/writ/cmd/writ/internal/supervise"
	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
)

const (
	// programLook is how often it is seen whether programs run and listen.
	programLook = 500 * time.Millisecond
	// programGrace is how long a program may take from its start until it listens
	// before that is a problem.
	programGrace = 3 * time.Second
	// programBound is how long a start waits for programs to listen.
	programBound = 10 * time.Second
	// hopeless is how many times a program that never listened has to end for
	// nobody to wait for it any more.
	hopeless = 3
)

// MissingPrograms warns of the LocalWorkloads of a mesh directory whose program
// is not on this machine.
func MissingPrograms(dir string) ([]meshdir.Problem, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	found, _ := meshdir.ReadPlan(meshdir.Options{Dir: dir})
	var out []meshdir.Problem
	for _, w := range found.Workloads {
		if len(w.Spec.Command) == 0 {
			continue
		}
		if _, err := lookUp(dir, filepath.Dir(self), w.Spec.Command[0]); err != nil {
			out = append(out, programProblem(w.Ref, meshdir.Warning, err.Error()+" of this machine"))
		}
	}
	return out, nil
}

func programProblem(where model.Ref, severity meshdir.Severity, message string) meshdir.Problem {
	return meshdir.Problem{File: where.File, Line: where.Line, Object: where.ID(), Field: "spec.command", Message: message, Severity: severity}
}

// lookUp finds a program: a path below the mesh directory, a binary beside
// `writ`, or one on PATH.
func lookUp(dir, bin, name string) (string, error) {
	if strings.ContainsRune(name, '/') {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		path, err := exec.LookPath(name)
		if err != nil {
			return "", fmt.Errorf("there is no program %s", name)
		}
		return path, nil
	}
	if path, err := exec.LookPath(filepath.Join(bin, name)); err == nil {
		return path, nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("there is no program %q on PATH", name)
	}
	return path, nil
}

// missing gives the replicas of p that cannot be started, by key, with what to say
// about each workload once: its program is not there, or a port that it is to have
// belongs to somebody else.
func (s *Stack) missing(p plan) (map[string]bool, []meshdir.Problem) {
	keys := make(map[string]bool)
	have, held := s.last.byKey(), s.last.listens()
	var out []meshdir.Problem
	for _, r := range p.replicas {
		problem := s.cannotRun(r)
		if old, runs := have[r.key()]; problem == nil && len(have) > 0 && (!runs || !old.sameProcesses(r)) {
			problem = s.taken(r, held)
		}
		if problem != nil {
			keys[r.key()] = true
			out = append(out, *problem)
		}
	}
	return keys, slices.Compact(out)
}

func (s *Stack) cannotRun(r replica) *meshdir.Problem {
	if len(r.command) == 0 {
		return nil
	}
	if _, err := lookUp(s.p.dir, s.p.bin, r.command[0]); err != nil {
		return new(programProblem(r.object, meshdir.Error, err.Error()))
	}
	return nil
}

// listens gives where the processes of p listen that have a port of the machine: the
// gateways, and programs that the stack started.
func (p plan) listens() map[string]bool {
	out := make(map[string]bool)
	for _, r := range p.replicas {
		for _, address := range r.listens() {
			out[address] = true
		}
	}
	return out
}

func (r *replica) listens() []string {
	var out []string
	for _, port := range r.ports {
		out = append(out, fmt.Sprintf("%s:%d", r.address, port))
	}
	if len(r.command) > 0 {
		for _, p := range r.instance.Spec.Ports {
			out = append(out, fmt.Sprintf("127.0.0.1:%d", p.App))
		}
	}
	return out
}

// taken says which port of a replica that is to be started another process has. What
// is held now by processes of this mesh may be given up by the same edit.
func (s *Stack) taken(r replica, held map[string]bool) *meshdir.Problem {
	for _, address := range r.listens() {
		if held[address] || !inUse(address) {
			continue
		}
		field, change := "spec.ports", "give the port another app"
		if r.gateway() {
			field, change = "spec.servers", "change the server's port"
		}
		return &meshdir.Problem{
			File: r.object.File, Line: r.object.Line, Object: r.object.ID(), Field: field, Severity: meshdir.Error,
			Message: fmt.Sprintf("%s is not started: %s is in use by %s: stop it, or %s", r.instance.Name, address, s.p.whoListens(address), change),
		}
	}
	return nil
}

func inUse(address string) bool {
	l, err := net.Listen("tcp", address)
	if err == nil {
		_ = l.Close()
	}
	return errors.Is(err, syscall.EADDRINUSE)
}

// withoutMissing gives want with what runs now in place of the replicas whose
// program is not there.
func (s *Stack) withoutMissing(want plan, missing map[string]bool) plan {
	if len(missing) == 0 {
		return want
	}
	have := s.last.byKey()
	var out plan
	for _, r := range want.replicas {
		if missing[r.key()] {
			old, runs := have[r.key()]
			if !runs {
				continue
			}
			r = old
		}
		out.replicas = append(out.replicas, r)
	}
	return out
}

// watchPrograms keeps the file with how far the workloads are, until ctx ends.
func (s *Stack) watchPrograms(ctx context.Context) {
	tick := time.NewTicker(programLook)
	defer tick.Stop()
	for {
		s.tellProgress(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// lookAtPrograms gives what is wrong with programs and other workloads, and the
// programs that are still to listen.
func (s *Stack) lookAtPrograms(now time.Time) (problems []meshdir.Problem, pending []string) {
	s.mu.Lock()
	runs := make([]*run, 0, len(s.runs))
	problems = slices.Clone(s.trouble)
	for _, r := range s.runs {
		if r.program != nil {
			runs = append(runs, r)
		}
	}
	s.mu.Unlock()
	for _, r := range runs {
		listens := r.listens()
		st := r.program.State()
		if message := s.programMessage(r, st, now); message != "" {
			problems = append(problems, programProblem(r.object, meshdir.Error, message))
		}
		if !listens && r.hopeful(st, now) {
			pending = append(pending, fmt.Sprintf("%s: the program of %s does not listen on 127.0.0.1:%d yet, the port it was given in $PORT", r.object, r.name, r.apps[0]))
		}
	}
	slices.Sort(pending)
	slices.SortFunc(problems, func(a, b meshdir.Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Message, b.Message))
	})
	return problems, pending
}

// hopeful says that a program which does not listen is still waited for.
func (r *run) hopeful(st supervise.State, now time.Time) bool {
	return len(r.apps) > 0 && (st.Restarts < hopeless || r.heard.Load() != 0) && (st.PID == 0 || now.Sub(st.Started) < programBound)
}

// programMessage says what is wrong with a program, "" if nothing is.
func (s *Stack) programMessage(r *run, st supervise.State, now time.Time) string {
	log := s.p.file("logs", r.program.Name()+".log")
	young := st.PID == 0 || now.Sub(st.Started) < programGrace
	switch {
	case st.PID != 0 && r.heard.Load() == int64(st.PID) && len(r.apps) > 0:
		return ""
	case st.Restarts > 0 && young:
		message := fmt.Sprintf("the program of %s ended (%s) and was started again, %d times", r.name, st.LastExit, st.Restarts)
		if said := s.lastLine(r.program.Name()); said != "" {
			message += fmt.Sprintf("; the last it said is %.200q", said)
		}
		return message + "; log=" + log
	case !young && len(r.apps) > 0:
		return fmt.Sprintf("the program of %s does not listen on 127.0.0.1:%d, the port it was given in $PORT; log=%s", r.name, r.apps[0], log)
	}
	return ""
}

// listens says whether the program of r that runs now has been seen to listen on
// each of its ports.
func (r *run) listens() bool {
	pid := int64(r.program.State().PID)
	if pid == 0 {
		return false
	}
	if r.heard.Load() == pid {
		return true
	}
	for _, port := range r.apps {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
		if err != nil {
			return false
		}
		_ = c.Close()
	}
	r.heard.Store(pid)
	return true
}

// waitForPrograms waits until the programs whose replica is in which (nil: all)
// listen, but not for ever: neither for one that ends again and again, nor when
// hurry says that there is something else to do. Callers of a program that does
// not listen get 503.
func (s *Stack) waitForPrograms(ctx context.Context, which map[string]bool, hurry func() bool) {
	s.mu.Lock()
	var runs []*run
	for key, r := range s.runs {
		if r.program != nil && (which == nil || which[key]) {
			runs = append(runs, r)
		}
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, r := range runs {
		wg.Go(func() {
			err := poll(ctx, programBound, func() error {
				if r.listens() || hurry() || r.program.State().Restarts >= hopeless {
					return nil
				}
				return errors.New("it does not listen yet")
			})
			if (err != nil || !r.listens()) && ctx.Err() == nil && len(r.apps) > 0 {
				s.log.WarnContext(ctx, "a program does not listen on the port it was given in $PORT", slog.String("workload", r.name),
					slog.Any("port", r.apps[0]), slog.String("log", s.p.file("logs", r.program.Name()+".log")))
			}
		})
	}
	wg.Wait()
}
