package stack

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/writ-mesh/writ/cmd/writ/internal/supervise"
	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/nodeagent/bootstrap"
	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
	nodeagentpb "github.com/writ-mesh/writ/proto/writ/nodeagent/v1"
)

// run is a replica's processes.
type run struct {
	replica replica
	handles []*supervise.Handle
}

func (r *run) stop() {
	for _, h := range r.handles {
		h.Stop()
	}
}

// reconcile makes what runs be what is wanted.
func (s *Stack) reconcile(ctx context.Context, want plan) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := want.byKey()
	for key, r := range s.runs {
		if w, ok := wanted[key]; !ok || !r.replica.sameProcesses(w) {
			r.stop()
			delete(s.runs, key)
		}
	}
	for _, r := range want.replicas {
		if old := s.runs[r.key()]; old != nil {
			old.replica = r // what has changed comes to its proxy from pilot
			continue
		}
		started, err := s.startReplica(ctx, r)
		if err != nil {
			return err
		}
		s.runs[r.key()] = started
	}
	return nil
}

func (s *Stack) startReplica(ctx context.Context, r replica) (*run, error) {
	out := &run{replica: r}
	envoy, err := s.proxy(r)
	if err != nil {
		return nil, err
	}
	if err := s.start(ctx, &out.handles, envoy); err != nil {
		return nil, err
	}
	if len(r.command) == 0 {
		return out, nil
	}
	program, err := s.program(r)
	if err != nil {
		return nil, err
	}
	return out, s.start(ctx, &out.handles, program)
}

// proxy gives the Envoy of a replica. It is registered with the node agent by
// its process ID as soon as it runs; until then the agent lets it wait.
func (s *Stack) proxy(r replica) (supervise.Process, error) {
	id := meshdir.ProxyID(r.instance)
	data, err := bootstrap.Bootstrap(bootstrap.Options{
		NodeID: id, Cluster: r.instance.Name, Address: r.admin, AgentSocket: s.p.socket("nodeagent"),
	})
	if err != nil {
		return supervise.Process{}, fmt.Errorf("%s: %w", r.where, err)
	}
	name := "envoy-" + r.instance.Namespace + "-" + r.instance.Name
	file := s.p.file("envoy", name+".json")
	if err := atomicfile.Write(file, data, 0o600); err != nil {
		return supervise.Process{}, err
	}
	level := s.opts.EnvoyLogLevel
	if level == "" {
		level = "warning"
	}
	return supervise.Process{
		Name: name, Dir: s.p.state, Env: os.Environ(), Grace: 2 * time.Second,
		Command: []string{
			s.opts.Envoy, "-c", file, "--disable-hot-restart", "--concurrency", "1", "--log-level", level,
			"--drain-time-s", "5", "--drain-strategy", "immediate", "--file-flush-interval-msec", "100",
		},
		Started: func(pid int) { go s.register(pid, id) },
	}, nil
}

// register tells the node agent which workload a process is. The agent may be
// down at the moment; the process waits for it anyhow.
func (s *Stack) register(pid int, proxyID string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := poll(ctx, time.Minute, func() error {
		_, err := s.agentAdmin.RegisterProcess(ctx, &nodeagentpb.RegisterProcessRequest{Pid: int32(pid), ProxyId: proxyID})
		return err
	})
	if err != nil {
		s.log.WarnContext(ctx, "a proxy could not be registered with the node agent",
			slog.String("proxy", proxyID), slog.Int("pid", pid), slog.Any("error", err))
	}
}

// program gives the program of a replica.
func (s *Stack) program(r replica) (supervise.Process, error) {
	path, err := s.lookUp(r.command[0])
	if err != nil {
		return supervise.Process{}, fmt.Errorf("%s: spec.command: %w", r.where, err)
	}
	proxy := fmt.Sprintf("http://%s:%d", r.address, model.ExplicitProxyPort)
	vars := map[string]string{
		"PATH": s.p.bin + string(os.PathListSeparator) + os.Getenv("PATH"), "HOME": os.Getenv("HOME"),
		"http_proxy": proxy, "HTTP_PROXY": proxy, "https_proxy": proxy, "HTTPS_PROXY": proxy,
		"ADDRESS": r.address.String(),
	}
	for i, p := range r.instance.Spec.Ports {
		if i == 0 {
			vars["PORT"] = fmt.Sprint(p.App)
		}
		vars["PORT_"+envName(p.Name)] = fmt.Sprint(p.App)
	}
	maps.Copy(vars, r.env)
	env := make([]string, 0, len(vars))
	for _, k := range slices.Sorted(maps.Keys(vars)) {
		env = append(env, k+"="+vars[k])
	}
	return supervise.Process{
		Name: "app-" + r.instance.Namespace + "-" + r.instance.Name, Dir: s.p.dir, Env: env, Grace: 3 * time.Second,
		Command: append([]string{path}, r.command[1:]...),
	}, nil
}

// lookUp finds a program: a path below the mesh directory, a binary beside
// `writ`, or one on PATH.
func (s *Stack) lookUp(name string) (string, error) {
	if strings.ContainsRune(name, '/') {
		if !filepath.IsAbs(name) {
			name = filepath.Join(s.p.dir, name)
		}
		return exec.LookPath(name)
	}
	if path, err := exec.LookPath(filepath.Join(s.p.bin, name)); err == nil {
		return path, nil
	}
	return exec.LookPath(name)
}

func envName(port string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' {
			return r - 'a' + 'A'
		}
		if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, port)
}

// waitForPrograms waits until every program that was started listens. One that
// does not within ten seconds is named in the log: its callers get 503.
func (s *Stack) waitForPrograms(ctx context.Context) error {
	for _, r := range s.last.replicas {
		if len(r.command) == 0 {
			continue
		}
		for _, p := range r.instance.Spec.Ports {
			err := poll(ctx, 10*time.Second, func() error {
				c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", p.App), time.Second)
				if err != nil {
					return err
				}
				return c.Close()
			})
			if err != nil {
				s.log.WarnContext(ctx, "a program does not listen on the port it was given in $PORT",
					slog.String("workload", r.instance.Name), slog.Uint64("port", uint64(p.App)),
					slog.String("log", s.p.file("logs", "app-"+r.instance.Namespace+"-"+r.instance.Name+".log")))
			}
		}
	}
	return nil
}

// report writes run.json and the ready file.
func (s *Stack) report(ctx context.Context) error {
	st, err := s.Status(ctx)
	if err != nil {
		return err
	}
	r := s.ready(st.GetServing())
	if err := r.write(s.p.file(runFile)); err != nil {
		return err
	}
	if s.opts.ReadyFile == "" {
		return nil
	}
	return r.write(s.opts.ReadyFile)
}

func (s *Stack) ready(revision uint64) *Ready {
	r := &Ready{
		Revision: fmt.Sprint(revision), TrustDomain: s.trustDomain, PID: os.Getpid(), Logs: s.p.file("logs"),
		Workloads: []ReadyWorkload{}, Gateways: []ReadyGateway{},
		Services: map[string]string{"ca": s.caAddr, "pilot": s.pilotAddr, "authz": s.p.unix("authz"), "ratelimit": s.p.unix("ratelimit")},
		Admin:    map[string]string{"ca": s.p.unix("ca-admin"), "pilot": s.p.unix("pilot-admin"), "nodeagent": s.p.unix("nodeagent-admin")},
	}
	for _, p := range s.last.replicas {
		admin := fmt.Sprintf("http://%s:%d", p.admin, model.AdminPort)
		if p.gateway() {
			namespace, name, _ := strings.Cut(p.instance.Spec.Gateway, "/")
			r.Gateways = append(r.Gateways, ReadyGateway{Name: name, Namespace: namespace, URL: p.url, Admin: admin})
			continue
		}
		w := ReadyWorkload{
			Name: p.instance.Name, Namespace: p.instance.Namespace, ServiceAccount: p.instance.Spec.ServiceAccount, Workload: p.workload,
			Address: p.address.String(), Ports: make(map[string]uint32), Admin: admin,
			Proxy: fmt.Sprintf("http://%s:%d", p.address, model.ExplicitProxyPort),
		}
		for _, port := range p.instance.Spec.Ports {
			w.Ports[port.Name] = port.Port
		}
		r.Workloads = append(r.Workloads, w)
	}
	return r
}

// Ready tells what runs.
func (s *Stack) Ready(ctx context.Context) (*Ready, error) {
	st, err := s.Status(ctx)
	if err != nil {
		return nil, err
	}
	return s.ready(st.GetServing()), nil
}
