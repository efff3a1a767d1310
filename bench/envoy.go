package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// findEnvoy looks where make envoy puts it.
func findEnvoy() (string, error) {
	if e := os.Getenv("ENVOY"); e != "" {
		return e, nil
	}
	if all, err := filepath.Glob(".tools/envoy-*/bin/envoy"); err == nil && len(all) > 0 {
		return all[len(all)-1], nil
	}
	e, err := exec.LookPath("envoy")
	if err != nil {
		return "", errors.New("the row with Envoys is left out: no Envoy (make envoy)")
	}
	return e, nil
}

// envoy is a real one that serves with secrets of a node agent.
type envoy struct {
	*process
	admin, listen string
}

// envoyConfig has the agent's socket, the address of the administration interface
// and the port of the listener.
const envoyConfig = `node: {id: bench, cluster: bench}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: %[2]s}}}
static_resources:
  clusters:
  - name: agent
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment: {cluster_name: agent, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: %[1]q}}}}]}]}
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: %[3]s}}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            tls_certificate_sds_secret_configs: [{name: default, sds_config: &agent {resource_api_version: V3, initial_fetch_timeout: 0s, api_config_source: {api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: agent}}]}}}]
            validation_context_sds_secret_config: {name: ROOTCA, sds_config: *agent}
      filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}]}
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
`

func launchEnvoy(ctx context.Context, program, config, agentSocket string) (*envoy, error) {
	e := new(envoy)
	var ports [2]string
	for i, address := range []*string{&e.admin, &e.listen} {
		var err error
		if *address, err = freeAddress(); err != nil {
			return nil, err
		}
		ports[i] = strings.TrimPrefix(*address, "127.0.0.1:")
	}
	text := fmt.Sprintf(envoyConfig, strings.TrimPrefix(agentSocket, "unix://"), ports[0], ports[1])
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	var err error
	e.process, err = launch(ctx, e.admin, program, "-c", config, "--disable-hot-restart", "--concurrency", "1", "--log-level", "error")
	return e, err
}

// asks waits until the Envoy has both its streams of SDS open.
func (e *envoy) asks(ctx context.Context) error {
	client := &http.Client{Timeout: time.Second}
	return until(ctx, func(ctx context.Context) error {
		body, err := get(ctx, client, "http://"+e.admin+"/stats?filter=cluster.agent.upstream_rq_active")
		if err == nil && !strings.Contains(body, "upstream_rq_active: 2") {
			err = fmt.Errorf("no streams of SDS: %s", body)
		}
		return err
	})
}

// answers waits until the Envoy answers over mutual TLS, with a certificate for id.
func (e *envoy) answers(ctx context.Context, client *x509svid.SVID, bundle *x509bundle.Bundle, id string) error {
	want, err := spiffeid.FromString(id)
	if err != nil {
		return err
	}
	transport := &http.Transport{TLSClientConfig: tlsconfig.MTLSClientConfig(client, bundle, tlsconfig.AuthorizeID(want))}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport, Timeout: time.Second}
	return until(ctx, func(ctx context.Context) error {
		_, err := get(ctx, c, "https://"+e.listen+"/")
		return err
	})
}

func get(ctx context.Context, c *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(body), err
}

// until tries every 2 ms until it works or ctx ends.
func until(ctx context.Context, f func(context.Context) error) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}
