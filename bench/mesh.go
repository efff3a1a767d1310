package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// runningMesh is `writ up` with real Envoys.
type runningMesh struct {
	dir   string
	cmd   *exec.Cmd
	out   *tail
	ended chan struct{}
	admin *grpc.ClientConn
	// names and addresses are those of the workloads.
	names, addresses []string
}

// strictMTLS lets nobody in without a certificate.
const strictMTLS = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n"

// upMesh runs a mesh of files, whose workloads have port 8000.
func upMesh(ctx context.Context, o options, files map[string]string) (_ *runningMesh, err error) {
	m := &runningMesh{dir: filepath.Join(o.dir, "mesh"), out: &tail{}, ended: make(chan struct{})}
	envoy, err := findEnvoy()
	if err == nil {
		envoy, err = filepath.Abs(envoy)
	}
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		return nil, err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(m.dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	ready := filepath.Join(o.dir, "ready.json")
	m.cmd = exec.CommandContext(ctx, filepath.Join(o.bin, "writ"), "up", m.dir, "--ready-file", ready) //nolint:gosec // a binary of this repository
	m.cmd.Cancel = func() error { return m.cmd.Process.Signal(os.Interrupt) }
	m.cmd.Stdout, m.cmd.Stderr = m.out, m.out
	m.cmd.Env = append(os.Environ(), "ENVOY="+envoy)
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { defer close(m.ended); _ = m.cmd.Wait() }()
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w: %s", err, m.out)
			m.down()
		}
	}()
	var told struct {
		Workloads []struct{ Name, Address string }
		Admin     map[string]string
	}
	wait, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	go func() { <-m.ended; cancel() }()
	if err := until(wait, func(context.Context) error {
		data, err := os.ReadFile(ready)
		if err != nil {
			return err
		}
		return json.Unmarshal(data, &told)
	}); err != nil {
		return nil, err
	}
	for _, w := range told.Workloads {
		m.names, m.addresses = append(m.names, w.Name), append(m.addresses, net.JoinHostPort(w.Address, "8000"))
	}
	m.admin, err = grpc.NewClient(told.Admin["ca"], grpc.WithTransportCredentials(insecure.NewCredentials()))
	return m, err
}

func (m *runningMesh) down() {
	_ = m.cmd.Process.Signal(os.Interrupt)
	<-m.ended
	if m.admin != nil {
		_ = m.admin.Close()
	}
}

// envoy is the process of a workload's Envoy.
func (m *runningMesh) envoy(workload string) (*process, error) {
	return runningWith(filepath.Join(m.dir, ".writ", "envoy", "envoy-default-"+workload+".json"))
}

// pilot is the process that configures them.
func (m *runningMesh) pilot() (*process, error) { return runningWith(m.dir, "writ-pilot") }

// runningWith finds the process whose command line has all the words in it.
func runningWith(words ...string) (*process, error) {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, file := range all {
		line, err := os.ReadFile(file)
		if err != nil || slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(string(line), w) }) {
			continue // it may have ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return nil, err
		}
		found, err := os.FindProcess(pid)
		return &process{name: words[0], cmd: &exec.Cmd{Process: found}}, err
	}
	return nil, fmt.Errorf("no process with %q", words)
}

// mint makes a certificate for the identity with the path and gives its serial number too.
func (m *runningMesh) mint(ctx context.Context, id string) (tls.Certificate, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	resp, err := capb.NewAdminClient(m.admin).Mint(ctx, &capb.MintRequest{SpiffeId: "spiffe://cluster.local" + id, Csr: csr})
	if err != nil {
		return tls.Certificate{}, "", err
	}
	leaf, err := x509.ParseCertificate(resp.GetChain()[0])
	if err != nil {
		return tls.Certificate{}, "", err
	}
	return tls.Certificate{Certificate: resp.GetChain(), PrivateKey: key, Leaf: leaf}, hex.EncodeToString(leaf.SerialNumber.Bytes()), nil
}
