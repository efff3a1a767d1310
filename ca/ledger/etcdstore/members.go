//go:build etcd

package etcdstore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/writ-mesh/writ/ca/ledger"
)

const (
	// askTimeout bounds how long a member is asked who is in the cluster.
	askTimeout = 2 * time.Second
	// maxList bounds its answer, in bytes.
	maxList = 1 << 20
	// renewTimeout bounds the replacement of a member: for some seconds after a change
	// etcd makes no other.
	renewTimeout = 9 * time.Second
)

// listed is a member as others know it.
type listed struct {
	PeerURLs   []string `json:"peerURLs"`
	Name       string   `json:"name"`
	ClientURLs []string `json:"clientURLs"`
}

// begins tells how a member starts: as one of a cluster that is new, or as one without
// data that a cluster waits for. One whose data is gone does neither: it might vote once
// more for what it has voted against.
func (c Config) begins(ctx context.Context, dir string) (string, error) {
	if _, err := os.Stat(filepath.Join(dir, "member")); !errors.Is(err, fs.ErrNotExist) {
		return embed.ClusterStateFlagNew, err // it has data, which says more than this
	}
	for name, addr := range c.Peers {
		if name == c.Name {
			continue
		}
		list, err := c.listBy(ctx, addr)
		if err != nil {
			continue // as others are that start too
		}
		i := slices.IndexFunc(list, func(m listed) bool { return slices.Contains(m.PeerURLs, c.url(c.Name)) })
		switch {
		case i < 0:
			return "", fmt.Errorf("the cluster of %s does not know %s at %s; name the same peers at each member", name, c.Name, c.Peers[c.Name])
		case list[i].Name == "":
			return embed.ClusterStateFlagExisting, nil
		case len(list[i].ClientURLs) > 0:
			return "", fmt.Errorf("%s has no data, and the cluster knows that it had some; if they are lost, run at another authority: writ roots renew-member %s", dir, c.Name)
		}
	}
	return embed.ClusterStateFlagNew, nil
}

func (c Config) url(name string) string { return "https://" + c.Peers[name] }

// listBy asks a member who is in its cluster.
func (c Config) listBy(ctx context.Context, addr string) ([]listed, error) {
	pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	if err != nil {
		return nil, err
	}
	roots, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: pool}}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+addr+"/members", nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // read only
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxList))
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: status %d: %w", addr, resp.StatusCode, err)
	}
	var out []listed
	return out, json.Unmarshal(data, &out)
}

// Renew has a member that lost its data begin anew: it is put out of the cluster and in
// again, and when it is started it gets everything from the others.
func Renew(ctx context.Context, s ledger.Store, name string) error {
	l, ok := s.(*Log)
	if !ok {
		return fmt.Errorf("%w: the ledger is none of etcd", ErrRefused)
	}
	addr, ok := l.config.Peers[name]
	if !ok || name == l.config.Name {
		return fmt.Errorf("%w: %q is no other member of the cluster", ErrRefused, name)
	}
	if _, err := l.config.listBy(ctx, addr); err == nil {
		return fmt.Errorf("%w: member %s is there; stop it first", ErrRefused, name)
	}
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	for {
		done, err := l.renew(ctx, l.config.url(name))
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return l.failed(errors.Join(ctx.Err(), err))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// renew does the next step: it removes the member, or adds it.
func (l *Log) renew(ctx context.Context, url string) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	list, err := l.client.MemberList(ctx)
	if err != nil {
		return false, err
	}
	i := slices.IndexFunc(list.Members, func(m *etcdserverpb.Member) bool { return slices.Contains(m.PeerURLs, url) })
	switch {
	case i < 0:
		_, err = l.client.MemberAdd(ctx, []string{url})
		return err == nil, err
	case list.Members[i].GetName() == "":
		return true, nil // and it was not started since
	}
	_, err = l.client.MemberRemove(ctx, list.Members[i].GetID())
	return false, err
}
