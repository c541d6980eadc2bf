// What detect.cpp reads: the file that export.py writes, and an image.
#pragma once
#include <cstdint>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

// float32 numbers in row-major order.
struct Tensor {
  std::vector<int64_t> shape;
  std::vector<float> data;

  Tensor() = default;
  explicit Tensor(std::vector<int64_t> sizes) : shape(std::move(sizes)) {
    int64_t elements = 1;
    for (int64_t size : shape) elements *= size;
    data.resize(size_t(elements));
  }
  int64_t size(int dimension) const { return shape.at(size_t(dimension)); }
};

struct Model {
  std::vector<std::string> class_names;
  std::map<std::string, std::vector<double>> numbers;
  std::map<std::string, Tensor> tensors;

  const std::vector<double>& values(const std::string& name) const {
    const auto found = numbers.find(name);
    if (found == numbers.end()) throw std::runtime_error("the model file has no number " + name);
    return found->second;
  }
  double number(const std::string& name) const { return values(name).at(0); }
  int64_t integer(const std::string& name) const { return int64_t(number(name)); }
  const Tensor& tensor(const std::string& name) const {
    const auto found = tensors.find(name);
    if (found == tensors.end()) throw std::runtime_error("the model file has no tensor " + name);
    return found->second;
  }
};

inline Model read_model(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be read");
  Model model;
  std::vector<std::string> order;
  for (std::string text; std::getline(file, text) && text != "end";) {
    std::istringstream line(text);
    std::string kind, name;
    line >> kind >> std::ws;
    if (kind == "class") {
      std::getline(line, name);
      model.class_names.push_back(name);
      continue;
    }
    line >> name;
    if (kind == "number") {
      for (double value; line >> value;) model.numbers[name].push_back(value);
    } else if (kind == "tensor") {
      std::vector<int64_t> shape;
      for (int64_t size; line >> size;) shape.push_back(size);
      model.tensors[name] = Tensor(shape);
      order.push_back(name);
    } else {
      throw std::runtime_error(path + ": expected a class, a number or a tensor, got the line " + text);
    }
  }
  for (const std::string& name : order) {
    std::vector<float>& data = model.tensors[name].data;
    if (!file.read(reinterpret_cast<char*>(data.data()), std::streamsize(data.size() * sizeof(float))))
      throw std::runtime_error(path + ": ends within the tensor " + name);
  }
  return model;
}

struct Image {
  int64_t height, width;
  std::vector<uint8_t> pixels;  // [height, width, 3] red, green, blue
};

// A binary PPM (P6) of 8 bits; any tool for images writes it.
inline Image read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  Image image{};
  int64_t maximum = 0;
  file >> magic >> image.width >> image.height >> maximum;
  if (!file || magic != "P6" || maximum != 255 || image.width <= 0 || image.height <= 0)
    throw std::runtime_error(path + ": expected a binary PPM (P6) of 8 bits without comments");
  file.get();  // one white space
  image.pixels.resize(size_t(image.height * image.width * 3));
  if (!file.read(reinterpret_cast<char*>(image.pixels.data()), std::streamsize(image.pixels.size())))
    throw std::runtime_error(path + ": ends within the image");
  return image;
}
