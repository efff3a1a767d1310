package rego

import (
	"fmt"
	"net/url"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/open-policy-agent/opa/v1/ast"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Input is the input document of one request.
type Input struct{ value ast.Value }

// InputOptions change how the input document is made.
type InputOptions struct {
	// SkipBody leaves parsed_body and truncated_body out.
	SkipBody bool
	// Messages describe gRPC requests whose body shall be read; nil for none.
	Messages *MessageSet
	// Token is the verified token, nil if there is none.
	Token *Token
	// TokenError says why a token that was presented is not in Token.
	TokenError string
}

// Token is what a policy gets to see of a verified JWT, as input.jwt.
type Token struct {
	Issuer string
	// Claims are the payload, in JSON.
	Claims []byte
}

// InputError says that a request cannot be turned into an input document: its
// path, query or body is malformed. The request has to be refused.
type InputError struct{ err error }

func (e *InputError) Error() string { return "malformed request: " + e.err.Error() }

func (e *InputError) Unwrap() error { return e.err }

// terms are fixed and therefore shared by all requests.
var (
	keyAttributes  = ast.StringTerm("attributes")
	keyVersion     = ast.StringTerm("version")
	keyParsedPath  = ast.StringTerm("parsed_path")
	keyParsedQuery = ast.StringTerm("parsed_query")
	keyParsedBody  = ast.StringTerm("parsed_body")
	keyTruncated   = ast.StringTerm("truncated_body")
	keyPrincipal   = ast.StringTerm("source_principal")
	keyJWT         = ast.StringTerm("jwt")
	keyJWTError    = ast.StringTerm("jwt_error")
	keyIssuer      = ast.StringTerm("issuer")
	keyClaims      = ast.StringTerm("claims")
	keyVerified    = ast.StringTerm("verified")
	version        = ast.ObjectTerm(
		[2]*ast.Term{ast.StringTerm("ext_authz"), ast.StringTerm("v3")},
		[2]*ast.Term{ast.StringTerm("encoding"), ast.StringTerm("protojson")})
)

// NewInput makes the document that the OPA-Envoy plugin makes: the request in
// protobuf's JSON names with unset fields left out, and parsed_path,
// parsed_query, parsed_body, truncated_body, source_principal and version. Of
// ours is jwt, {"verified": true, "issuer", "claims"}, which is there for
// verified tokens only, and jwt_error, the reason why one was not accepted. The
// error is always an *InputError.
func NewInput(req *authv3.CheckRequest, o InputOptions) (*Input, error) {
	http := req.GetAttributes().GetRequest().GetHttp()
	in := ast.NewObjectWithCapacity(8)
	if a := req.GetAttributes(); a != nil {
		in.Insert(keyAttributes, attributes(a))
	}
	in.Insert(keyVersion, version)
	path, query, err := splitPath(http.GetPath())
	if err != nil {
		return nil, &InputError{err}
	}
	in.Insert(keyParsedPath, stringList(path))
	in.Insert(keyParsedQuery, valuesObject(query))
	if !o.SkipBody {
		body, truncated, err := parseBody(http, path, o.Messages)
		if err != nil {
			return nil, &InputError{err}
		}
		in.Insert(keyParsedBody, ast.NewTerm(body))
		in.Insert(keyTruncated, ast.InternedTerm(truncated))
	}
	if p := req.GetAttributes().GetSource().GetPrincipal(); p != "" {
		in.Insert(keyPrincipal, ast.StringTerm(p))
	}
	if err := insertToken(in, o); err != nil {
		return nil, &InputError{err}
	}
	return &Input{value: in}, nil
}

func insertToken(in ast.Object, o InputOptions) error {
	if o.TokenError != "" {
		in.Insert(keyJWTError, ast.StringTerm(o.TokenError))
	}
	if o.Token == nil {
		return nil
	}
	claims, err := wholeJSON(o.Token.Claims)
	if err != nil {
		return fmt.Errorf("claims: %w", err)
	}
	in.Insert(keyJWT, ast.ObjectTerm(
		[2]*ast.Term{keyVerified, ast.InternedTerm(true)},
		[2]*ast.Term{keyIssuer, ast.StringTerm(o.Token.Issuer)},
		[2]*ast.Term{keyClaims, ast.NewTerm(claims)}))
	return nil
}

// splitPath decodes and splits the path, and parses the query.
func splitPath(raw string) ([]string, url.Values, error) {
	rawPath, rawQuery, _ := strings.Cut(raw, "?")
	path, err := url.PathUnescape(rawPath)
	if err != nil {
		return nil, nil, fmt.Errorf("path: %w", err)
	}
	parts := strings.Split(strings.TrimLeft(path, "/"), "/")
	if rawQuery == "" {
		return parts, nil, nil
	}
	query, err := url.ParseQuery(rawQuery)
	if err != nil {
		return nil, nil, fmt.Errorf("query: %w", err)
	}
	return parts, query, nil
}

// object collects the fields of a message that are set.
type object struct{ ast.Object }

func newObject(capacity int) object { return object{ast.NewObjectWithCapacity(capacity)} }

func (o object) str(key, value string) {
	if value != "" {
		o.Insert(ast.InternedTerm(key), ast.StringTerm(value))
	}
}

func (o object) num(key string, value int64) {
	if value != 0 {
		o.Insert(ast.InternedTerm(key), ast.NewTerm(ast.MustInterfaceToValue(value)))
	}
}

func (o object) term(key string, value *ast.Term) {
	if value != nil {
		o.Insert(ast.InternedTerm(key), value)
	}
}

func (o object) strings(key string, m map[string]string) {
	if len(m) == 0 {
		return
	}
	x := ast.NewObjectWithCapacity(len(m))
	// One allocation for all terms, and none for the names that are in every
	// request: this is where most of the document's memory comes from.
	terms := make([]ast.Term, 2*len(m))
	for k, v := range m {
		name := commonHeaders[k]
		if name == nil {
			name, terms = &terms[0], terms[1:]
			name.Value = ast.String(k)
		}
		value := &terms[0]
		terms = terms[1:]
		value.Value = ast.String(v)
		x.Insert(name, value)
	}
	o.term(key, ast.NewTerm(x))
}

// commonHeaders are the terms of names that most requests have.
var commonHeaders = func() map[string]*ast.Term {
	m := make(map[string]*ast.Term)
	for _, name := range []string{
		":authority", ":method", ":path", ":scheme", "accept", "accept-encoding", "accept-language", "authorization", "cache-control",
		"content-length", "content-type", "cookie", "forwarded", "grpc-timeout", "host", "origin", "referer", "te", "traceparent", "tracestate",
		"user-agent", "x-b3-parentspanid", "x-b3-sampled", "x-b3-spanid", "x-b3-traceid", "x-envoy-attempt-count",
		"x-envoy-auth-partial-body", "x-envoy-decorator-operation", "x-envoy-expected-rq-timeout-ms", "x-envoy-external-address",
		"x-envoy-internal", "x-envoy-original-path", "x-envoy-peer-metadata", "x-envoy-peer-metadata-id", "x-forwarded-client-cert",
		"x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-request-id", "writ.policies",
	} {
		m[name] = ast.StringTerm(name)
	}
	return m
}()

// attributes is written out, where a walk over the message's descriptor would
// do, because it is on the path of every request; a test holds the two equal.
func attributes(a *authv3.AttributeContext) *ast.Term {
	o := newObject(8)
	o.term("source", peer(a.GetSource()))
	o.term("destination", peer(a.GetDestination()))
	if r := a.GetRequest(); r != nil {
		x := newObject(2)
		x.term("time", timestamp(r.GetTime()))
		if h := r.GetHttp(); h != nil {
			x.term("http", httpRequest(h))
		}
		o.term("request", ast.NewTerm(x.Object))
	}
	o.strings("contextExtensions", a.GetContextExtensions())
	if m := a.GetMetadataContext(); m != nil {
		o.term("metadataContext", message(m.ProtoReflect()))
	}
	if m := a.GetRouteMetadataContext(); m != nil {
		o.term("routeMetadataContext", message(m.ProtoReflect()))
	}
	if t := a.GetTlsSession(); t != nil {
		x := newObject(1)
		x.str("sni", t.GetSni())
		o.term("tlsSession", ast.NewTerm(x.Object))
	}
	return ast.NewTerm(o.Object)
}

func peer(p *authv3.AttributeContext_Peer) *ast.Term {
	if p == nil {
		return nil
	}
	o := newObject(5)
	o.term("address", address(p.GetAddress()))
	o.str("service", p.GetService())
	o.strings("labels", p.GetLabels())
	o.str("principal", p.GetPrincipal())
	o.str("certificate", p.GetCertificate())
	return ast.NewTerm(o.Object)
}

func address(a *corev3.Address) *ast.Term {
	if a == nil {
		return nil
	}
	s, ok := a.GetAddress().(*corev3.Address_SocketAddress)
	if !ok || s.SocketAddress.GetNetworkNamespaceFilepath() != "" {
		return message(a.ProtoReflect())
	}
	switch s.SocketAddress.GetPortSpecifier().(type) {
	case nil, *corev3.SocketAddress_PortValue:
	default:
		return message(a.ProtoReflect())
	}
	o := newObject(4)
	o.num("protocol", int64(s.SocketAddress.GetProtocol()))
	o.str("address", s.SocketAddress.GetAddress())
	// A member of a oneof is there whenever it was chosen, zero or not.
	if _, ok := s.SocketAddress.GetPortSpecifier().(*corev3.SocketAddress_PortValue); ok {
		o.term("portValue", ast.NewTerm(ast.MustInterfaceToValue(int64(s.SocketAddress.GetPortValue()))))
	}
	o.str("resolverName", s.SocketAddress.GetResolverName())
	if s.SocketAddress.GetIpv4Compat() {
		o.term("ipv4Compat", ast.InternedTerm(true))
	}
	return ast.ObjectTerm([2]*ast.Term{ast.InternedTerm("socketAddress"), ast.NewTerm(o.Object)})
}

func timestamp(t *timestamppb.Timestamp) *ast.Term {
	if t == nil {
		return nil
	}
	o := newObject(2)
	o.num("seconds", t.GetSeconds())
	o.num("nanos", int64(t.GetNanos()))
	return ast.NewTerm(o.Object)
}

func httpRequest(h *authv3.AttributeContext_HttpRequest) *ast.Term {
	o := newObject(12)
	o.str("id", h.GetId())
	o.str("method", h.GetMethod())
	o.strings("headers", h.GetHeaders())
	if m := h.GetHeaderMap(); m != nil {
		o.term("headerMap", message(m.ProtoReflect()))
	}
	o.str("path", h.GetPath())
	o.str("host", h.GetHost())
	o.str("scheme", h.GetScheme())
	o.str("query", h.GetQuery())
	o.str("fragment", h.GetFragment())
	o.num("size", h.GetSize())
	o.str("protocol", h.GetProtocol())
	o.str("body", h.GetBody())
	o.term("rawBody", bytesTerm(h.GetRawBody()))
	return ast.NewTerm(o.Object)
}

func stringList(list []string) *ast.Term {
	terms, refs := make([]ast.Term, len(list)), make([]*ast.Term, len(list))
	for i, s := range list {
		terms[i].Value = ast.String(s)
		refs[i] = &terms[i]
	}
	return ast.ArrayTerm(refs...)
}

func valuesObject(v map[string][]string) *ast.Term {
	o := ast.NewObjectWithCapacity(len(v))
	for k, list := range v {
		o.Insert(ast.StringTerm(k), stringList(list))
	}
	return ast.NewTerm(o)
}
