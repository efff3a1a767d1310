package e2e

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// leafIn is the certificate that a service keeps in a folder.
func leafIn(dir string) (*x509.Certificate, error) {
	data, err := os.ReadFile(filepath.Join(dir, "identity.pem"))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("no PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

// serviceAlone runs a program of Writ with a configuration, until the test ends.
func serviceAlone(t *testing.T, name, dir, config string) *os.Process {
	t.Helper()
	write(t, dir, name+".yaml", config)
	cmd := exec.Command(binary(t, name), "-config", filepath.Join(dir, name+".yaml"))
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
		if t.Failed() {
			data, _ := os.ReadFile(log.Name())
			t.Logf("%s: %s", name, data)
		}
	})
	return cmd.Process
}

// TestReadmit: a node that was stopped for longer than its certificate lives, and
// whose one-time token is used up, is back within seconds of one command. It renews
// with its certificate as long as it can.
func TestReadmit(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "writ") //nolint:usetesting // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ca := proctest.Address(t)
	socket, token, identity := "unix://"+dir+"/ca.sock", filepath.Join(dir, "token"), filepath.Join(dir, "identity")
	serviceAlone(t, "writ-ca", dir, fmt.Sprintf(
		"state: %s/ca\nlisten: %s\nadmin: %s\nservice_ttl: 10s\ntrust_bundle: %s/bundle.pem\nmonitoring: \"\"\n", dir, ca, socket, dir))
	agent := serviceAlone(t, "writ-nodeagent", dir, fmt.Sprintf(
		"node: n1\nsocket: unix://%s/agent.sock\nstate: %s/agent\npilot: 127.0.0.1:1\nmonitoring: \"\"\n"+
			"credential: {ca: %q, trust_bundle: %s/bundle.pem, token_file: %s, dir: %s, trust_domain: cluster.local}\n", dir, dir, ca, dir, token, identity))
	admit := func() {
		t.Helper()
		proctest.Eventually(t, 30*time.Second, func() error {
			if out, code := writ(t, "nodes", "readmit", "n1", "--admin", socket, "--token-file", token); code != 0 {
				return errors.New(out)
			}
			return nil
		})
	}
	newer := func(than *x509.Certificate) *x509.Certificate {
		t.Helper()
		var leaf *x509.Certificate
		proctest.Eventually(t, 60*time.Second, func() (err error) {
			if leaf, err = leafIn(identity); err == nil && than != nil && leaf.SerialNumber.Cmp(than.SerialNumber) == 0 {
				err = errors.New("still the old certificate")
			}
			return err
		})
		return leaf
	}
	admit()
	first := newer(nil)
	last := newer(first) // by the certificate: the token was good once
	if err := agent.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	proctest.Eventually(t, 30*time.Second, func() error {
		leaf, err := leafIn(identity)
		if err == nil && time.Now().Before(leaf.NotAfter.Add(time.Second)) {
			err = errors.New("still valid")
		}
		last = leaf
		return err
	})
	if err := agent.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	proctest.Eventually(t, 30*time.Second, func() error {
		data, err := os.ReadFile(filepath.Join(dir, "writ-nodeagent.log"))
		if err == nil && !strings.Contains(string(data), "unknown, expired or already used") {
			err = errors.New("it has not noticed yet")
		}
		return err
	})
	admit()
	newer(last)
}
