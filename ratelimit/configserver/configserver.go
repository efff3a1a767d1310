// Package configserver follows a management server that has the configuration of
// envoyproxy/ratelimit, in the protocol of that service: the state-of-the-world variant
// of the aggregated discovery service, with acknowledgements.
//
// Protocol: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol; the
// resources: https://github.com/envoyproxy/ratelimit#xds-management-server-based-configuration-loading
package configserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/pemroots"
	"github.com/writ-mesh/writ/internal/rpc"
	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
)

const (
	// typeURL is that of the resources.
	typeURL = "type.googleapis.com/ratelimit.config.ratelimit.v3.RateLimitConfig"
	// maxMessage bounds what the server sends at once, in bytes.
	maxMessage = 64 << 20
	// Back-off between attempts to connect.
	minBackoff = 100 * time.Millisecond
	maxBackoff = 10 * time.Second
)

// Config says where the management server is.
type Config struct {
	// Address is host:port or unix:///path; empty is none. Plain text is for this
	// machine.
	Address string `yaml:"address"`
	// NodeID and Metadata are how this service calls itself.
	NodeID   string            `yaml:"node_id"`
	Metadata map[string]string `yaml:"metadata"`
	// TLS checks the server's certificate against CAFile, the system's roots if empty,
	// and ServerName, the address's host if empty.
	TLS        bool   `yaml:"tls"`
	CAFile     string `yaml:"ca_file"`
	ServerName string `yaml:"server_name"`
	// CertFile and KeyFile are what the server knows this service by; PEM.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

// DefaultNodeID is that of envoyproxy/ratelimit.
const DefaultNodeID = "default"

// Validate checks everything that can be checked without connecting.
func (c *Config) Validate() error {
	if c.Address == "" {
		return nil
	}
	var errs []error
	if err := listen.Valid(c.Address); err != nil {
		errs = append(errs, fmt.Errorf("config_server.address: %w", err))
	} else if _, unix := listen.Unix(c.Address); !unix && !c.TLS {
		if err := listen.Loopback(c.Address); err != nil {
			errs = append(errs, fmt.Errorf("config_server.address: %w; or set config_server.tls", err))
		}
	}
	if c.NodeID == "" {
		errs = append(errs, errors.New("config_server.node_id: missing"))
	}
	if !c.TLS && (c.CAFile != "" || c.ServerName != "" || c.CertFile != "" || c.KeyFile != "") {
		errs = append(errs, errors.New("config_server.ca_file, server_name, cert_file and key_file are for tls: true"))
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		errs = append(errs, errors.New("config_server.cert_file and key_file belong together"))
	}
	return errors.Join(errs...)
}

// credentials reads the files that the configuration names.
func (c *Config) credentials() (credentials.TransportCredentials, error) {
	if !c.TLS {
		return insecure.NewCredentials(), nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	if host, _, err := net.SplitHostPort(c.Address); err == nil && t.ServerName == "" {
		t.ServerName = host
	}
	if c.CAFile != "" {
		roots, err := pemroots.Load(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("config_server.ca_file: %w", err)
		}
		t.RootCAs = roots
	}
	if c.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("config_server.cert_file: %w", err)
		}
		t.Certificates = []tls.Certificate{cert}
	}
	return credentials.NewTLS(t), nil
}

// Client follows a management server.
type Client struct {
	conn    *grpc.ClientConn
	node    *corev3.Node
	log     *slog.Logger
	version string // acknowledged last
}

// New makes a client for a configuration that Validate accepted. It does not connect.
func New(c Config, log *slog.Logger) (*Client, error) {
	creds, err := c.credentials()
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(c.Address, grpc.WithTransportCredentials(creds), grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)), grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}))
	if err != nil {
		return nil, fmt.Errorf("config_server: %w", err)
	}
	node := &corev3.Node{Id: c.NodeID, UserAgentName: "writ", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{}}}
	for key, value := range c.Metadata {
		node.Metadata.Fields[key] = structpb.NewStringValue(value)
	}
	return &Client{conn: conn, node: node, log: log}, nil
}

// Run calls apply with everything that the server has, at the start and after each
// change, until ctx ends. An error is sent to the server as a refusal.
func (c *Client) Run(ctx context.Context, apply func([]*ratelimitpb.DomainConfig) error) error {
	defer func() { _ = c.conn.Close() }()
	return rpc.Follow(ctx, c.log, "management server", minBackoff, maxBackoff, func(ctx context.Context) (bool, error) { return c.stream(ctx, apply) })
}

// stream runs one stream to its end; worked tells whether a response came.
func (c *Client) stream(ctx context.Context, apply func([]*ratelimitpb.DomainConfig) error) (worked bool, err error) {
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(c.conn).StreamAggregatedResources(ctx)
	if err != nil {
		return false, err
	}
	if err := s.Send(&discoveryv3.DiscoveryRequest{Node: c.node, TypeUrl: typeURL, VersionInfo: c.version}); err != nil {
		return false, err
	}
	for {
		resp, err := s.Recv()
		if err != nil {
			c.log.WarnContext(ctx, "management server is away, the last good limits stay", slog.Any("error", err))
			return worked, err
		}
		worked = true
		ack := &discoveryv3.DiscoveryRequest{TypeUrl: typeURL, ResponseNonce: resp.GetNonce()}
		sent, err := domains(resp)
		if err == nil {
			err = apply(sent)
		}
		if err != nil {
			ack.ErrorDetail = &statuspb.Status{Code: int32(codes.InvalidArgument), Message: err.Error()}
		} else {
			c.version = resp.GetVersionInfo()
		}
		ack.VersionInfo = c.version
		if err := s.Send(ack); err != nil {
			return worked, err
		}
	}
}

// domains reads the resources of a response.
func domains(resp *discoveryv3.DiscoveryResponse) ([]*ratelimitpb.DomainConfig, error) {
	if resp.GetTypeUrl() != typeURL {
		return nil, fmt.Errorf("type %s was not asked for", resp.GetTypeUrl())
	}
	out := make([]*ratelimitpb.DomainConfig, len(resp.GetResources()))
	for i, r := range resp.GetResources() {
		if r.GetTypeUrl() != typeURL {
			return nil, fmt.Errorf("resource %d has the type %s", i, r.GetTypeUrl())
		}
		out[i] = &ratelimitpb.DomainConfig{}
		if err := proto.Unmarshal(r.GetValue(), out[i]); err != nil {
			return nil, fmt.Errorf("resource %d: %w", i, err)
		}
	}
	return out, nil
}
